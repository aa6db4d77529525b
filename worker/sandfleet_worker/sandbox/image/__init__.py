"""Images of this host: read, unpacked, packed to one EROFS file a digest."""
