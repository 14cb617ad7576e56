import pytest

from vis_d2.data.converters.safe_xml import parse_xml


def parsed(tmp_path, data):
    path = tmp_path / "a.xml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    found = []
    parse_xml(path, lambda *event: found.append(event), lambda *event: None)
    return found


def test_elements_come_with_path_text_and_line(tmp_path):
    found = parsed(tmp_path, '<?xml version="1.0"?>\n<a>\n<b k="v&amp;"> x &lt;\n</b><c/></a>')
    assert found == [
        (("a", "b"), {"k": "v&"}, "x <", 3),
        (("a", "c"), {}, "", 4),
        (("a",), {}, "", 2),
    ]


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]>\n<a>&y;</a>'
OTHER_FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a>&x;</a>'


@pytest.mark.parametrize(
    "data, message",
    [
        (BOMB, "line 1: document types and entities are refused"),
        (OTHER_FILE, "line 1: document types and entities are refused"),
        ('<!DOCTYPE a SYSTEM "http://x/y.dtd"><a/>', "refused"),
        ("<a>\n<b></a>", "line 2: not well-formed XML: mismatched tag"),
        ("<a>&nbsp;</a>", "line 1: not well-formed XML: undefined entity"),
        ("", "no element found"),
        (b"\x00\xff", "not well-formed"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "a.xml: line 1"),
        ("<a>" * 101, "line 1: nested too deeply"),
    ],
)
def test_what_is_broken_or_dangerous_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=rf"a\.xml: line .*{message}|{message}"):
        parsed(tmp_path, data)


def test_errors_of_the_caller_get_file_and_line(tmp_path):
    def fail(*event):
        raise ValueError("no good")

    (tmp_path / "a.xml").write_text("<a>\n<b/></a>")
    with pytest.raises(ValueError, match="a.xml: line 2: no good"):
        parse_xml(tmp_path / "a.xml", fail, lambda *event: None)
