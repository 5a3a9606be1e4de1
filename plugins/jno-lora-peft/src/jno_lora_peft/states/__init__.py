"""LoRA in the states of Qwix, Tunix and MaxText, and in the files of diffusers and kohya."""
