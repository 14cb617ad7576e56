"""The commands of ``vis-d2``: one file each, with a ``main(argv)``."""
