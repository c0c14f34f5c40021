"""What a run is: every setting, checked, with the identity that follows from them."""
