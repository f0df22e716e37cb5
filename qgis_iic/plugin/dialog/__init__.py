"""The dialog: gathers parameters for `iic:extractbuildings` and shows how the run goes; its widgets compute nothing."""
