"""Ridge regression of many targets: statistics of features, searches of penalties, solutions."""
