"""What a run folder says: the verdict in words, figures, the report page and the model card. No torch here."""
