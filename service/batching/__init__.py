"""The queue of one model: admission of calls, and the policy by which batches are made."""
