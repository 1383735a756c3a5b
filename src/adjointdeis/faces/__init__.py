"""Everything about faces: pictures, alignment, recognition networks and pair lists."""

from adjointdeis.extras import require

require("faces", "faces")
