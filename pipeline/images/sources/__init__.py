"""Image sets as they are distributed: finding and opening them, and their images one by one."""
