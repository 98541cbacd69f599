"""Words every other file uses: errors, checked settings, arithmetic on lists of tensors."""
