"""From a plan to an ordinary checkpoint, tensor by tensor."""
