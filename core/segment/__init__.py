"""Text-prompted segmentation: CLIPSeg finds, SAM 2 refines."""
