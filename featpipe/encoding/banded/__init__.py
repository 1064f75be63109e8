"""Ridge with a penalty per band of features and target."""
