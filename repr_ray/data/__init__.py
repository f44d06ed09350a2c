"""Images: their sources (sources), splits (split), one decoded copy per machine (decoded), and batches on the device
(batches, augment)."""
