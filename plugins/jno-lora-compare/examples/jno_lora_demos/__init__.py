"""The demos of `jno-lora demo`. They need the libraries of the extra `demo`."""
