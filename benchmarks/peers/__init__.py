"""The same model, dictionary and tokens through Neuronaut, delphi's cache and SAEDashboard, side by side."""
