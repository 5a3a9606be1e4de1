"""The model: its layers as PEFT sees them, their paths, tied embeddings, and arrays to replace."""
