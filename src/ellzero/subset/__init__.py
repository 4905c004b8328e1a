"""Best-subset search: Gram matrices, exchanges with exact prices, paths over budgets."""
