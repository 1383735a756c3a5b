"""Face morphing attacks, one file each."""

from adjointdeis.extras import require

require("faces", "morphing attacks")
