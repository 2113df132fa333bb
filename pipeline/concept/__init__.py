"""Documents as sequences of sentence vectors: the workload of the Large Concept Model."""
