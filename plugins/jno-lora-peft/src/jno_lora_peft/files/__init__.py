"""The files of an adapter of PEFT: the directory, the tensors by module, and the settings."""
