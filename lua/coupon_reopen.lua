#!lua
-- Announces that coupons which a rebuild held back are about to be released. From here on no process begins, or goes on, to
-- refuse this campaign by itself; the release may follow once all that do have ended.
--
-- KEYS 1 meta      hash    the partition's books
--      2 campaign  hash    total withheld reopening ...
-- ARGV 1 token, never used before  2 coupons
-- Returns {'REOPENING', token of the announcement that stands: this one, or an earlier one}
--      or CLOSED_BOOKS | UNKNOWN_CAMPAIGN | INSUFFICIENT_STOCK (less is held back)
--@include books
local meta, campaign = KEYS[1], KEYS[2]
local token, count = ARGV[1], tonumber(ARGV[2])

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
local c = redis.call('HMGET', campaign, 'total', 'withheld', 'reopening')
if not c[1] then return { 'UNKNOWN_CAMPAIGN' } end
if tonumber(c[2] or 0) < count then return { 'INSUFFICIENT_STOCK' } end
---- checks above, writes below -------------------------------------------------------------------------------------
if not c[3] then redis.call('HSET', campaign, 'reopening', token) end
return { 'REOPENING', c[3] or token }
