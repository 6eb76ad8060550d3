"""Images: folders, timm data sets and the embedded digits."""
