"""What a rank runs: the OpenAI API, the coordinator and the node's own ports."""
