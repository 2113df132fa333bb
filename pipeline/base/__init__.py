"""Files, locks, processes and messages, which every package uses; knows nothing of learning."""
