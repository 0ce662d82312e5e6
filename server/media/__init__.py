"""Media intake: fetching, checking and decoding of images, videos and audio."""
