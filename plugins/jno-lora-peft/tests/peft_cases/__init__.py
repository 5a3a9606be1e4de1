"""Files of PEFT and models for them, which the tests share."""
