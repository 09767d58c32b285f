"""The classifier and its tokenizer: loaded safely, run on packed sentences, exported as a stock model with a card."""
