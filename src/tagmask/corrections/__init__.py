"""Reading masks that people have corrected in annotation tools."""
