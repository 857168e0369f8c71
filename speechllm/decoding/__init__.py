"""Search, scorers and alignment on a batch of encoded utterances."""
