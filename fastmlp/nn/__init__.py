"""What ``torch.nn`` has, on fastmlp's operators: functions, modules, initialisation, conversion."""
