"""Calls: from a public function through autograd and torch's dispatcher to the selected backend's kernel."""
