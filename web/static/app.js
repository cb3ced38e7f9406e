// Behaviour that all pages share.
