"""Images: where they come from (sources), one decoded copy per machine (decoded), batches on the device (batches)."""
