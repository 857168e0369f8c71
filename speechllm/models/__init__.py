"""Neural networks: speech encoders, bridges, the LLM and the model of all three."""

import logging

# peft imports bitsandbytes, which warns that it has no kernel for 4-bit products on a
# CPU; models/quantization.py does not use it
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
