"""The torch engine: one frozen base, any number of adapters, one thread that trains and samples."""
