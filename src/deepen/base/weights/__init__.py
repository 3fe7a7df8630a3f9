"""What lies in weight files: pickles, the bytes of safetensors, and how large their numbers are."""
