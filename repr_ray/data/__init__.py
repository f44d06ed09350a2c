"""Images: where they come from (sources), which are trained on (split), one decoded copy per machine (decoded), and
batches on the device (batches, augment)."""
