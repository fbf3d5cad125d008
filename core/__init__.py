"""What knows neither privacy nor the network: model, tokenizer, tasks, data, training, errors."""
