"""Neural-network blocks that know nothing of videos, boxes or losses."""
