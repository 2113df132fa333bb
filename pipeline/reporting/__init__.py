"""Records of samples and scores, and the tables and pages that show them."""
