"""Face morphing attacks, one file each."""
