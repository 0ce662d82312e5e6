"""The operator's configuration: `load` reads the file, one module per section."""
