#!lua
-- Announces that coupons which a rebuild held back are about to be released. From here on no process begins, or goes on, to
-- refuse this campaign by itself; the release may follow once all that do have ended.
--
-- KEYS 1 meta      hash    the partition's books
--      2 outbox    stream  not touched
--      3 record    list    the idempotency record of the release
--      4 campaign  hash    total withheld reopening ...
-- ARGV 1 '' (a test's clock, ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 token, never used before  6 coupons
-- Returns {'REOPENING', token of the announcement that stands: this one, or an earlier one}
--      or {'REPLAYED', ...what coupon_release.lua returned under this key} | KEY_REUSED | IN_PROGRESS | CLOSED_BOOKS
--      or UNKNOWN_CAMPAIGN | INSUFFICIENT_STOCK (less is held back)
--@include lists
--@include partition
local meta, record, campaign = KEYS[1], KEYS[3], KEYS[4]
local fingerprint, token, count = ARGV[2], ARGV[5], tonumber(ARGV[6])

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local c = redis.call('HMGET', campaign, 'total', 'withheld', 'reopening')
if not c[1] then return { 'UNKNOWN_CAMPAIGN' } end
if tonumber(c[2] or 0) < count then return { 'INSUFFICIENT_STOCK' } end
---- checks above, writes below -------------------------------------------------------------------------------------
if not c[3] then redis.call('HSET', campaign, 'reopening', token) end
return { 'REOPENING', c[3] or token }
