"""Everything about faces: pictures, alignment, recognition networks and pair lists."""
