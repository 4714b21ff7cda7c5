def sum_prices(prices):
    """Return the sum of the prices."""
    total = 0
    for price in prices:
        total += price
    return total

def largest_price(prices):
    """Return the largest of the prices."""
    best = prices[0]
    for price in prices:
        if price > best:
            best = price
    return best

def count_prices_above(prices, limit):
    """Count the prices above the limit."""
    count = 0
    for price in prices:
        if price > limit:
            count += 1
    return count

def average_price(prices):
    """Return the average of the prices."""
    total = 0
    for price in prices:
        total += price
    return total / len(prices)

def keep_prices_above(prices, limit):
    """Return the prices above the limit."""
    result = []
    for price in prices:
        if price > limit:
            result.append(price)
    return result
