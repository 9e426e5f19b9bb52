"""HTTP: the node's own API (`local`), the API between nodes (`peer`) and what they share."""
