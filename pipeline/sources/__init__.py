"""Where images come from: one module for each way in which an image set may be packaged."""
