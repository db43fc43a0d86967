"""The API's words: requests checked and understood, answers written, whole or as a stream."""
