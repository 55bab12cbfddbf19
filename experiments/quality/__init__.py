"""How good hours of speech are without a judge, and a detector of gibberish with a known error rate; see README.md."""
