#!lua
-- Lets coupons be issued again that a rebuild held back.
--
-- KEYS 1 meta      hash    the partition's books
--      2 outbox    stream
--      3 record    list    the idempotency record
--      4 campaign  hash    total issued withheld reopening ...
-- ARGV 1 '' (a test's clock, ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 coupon id  6 coupons
--      7 token of the announcement (coupon_release_prepare.lua) that was waited for
-- Returns {'COUPONS_RELEASED', epoch, seq, coupons still held back}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | CLOSED_BOOKS
--      or UNKNOWN_CAMPAIGN | NOT_REOPENING (another announcement stands, or none: announce and wait again)
--      or INSUFFICIENT_STOCK (less is held back)
-- Emits coupons_released
--@include lists
--@include partition
local meta, outbox, record, campaign = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, fingerprint, ttl, request_id, coupon_id, count, token =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local c = redis.call('HMGET', campaign, 'total', 'withheld', 'reopening')
if not c[1] then return { 'UNKNOWN_CAMPAIGN' } end
if c[3] ~= token then return { 'NOT_REOPENING' } end
local left = tonumber(c[2] or 0) - count
if left < 0 then return { 'INSUFFICIENT_STOCK' } end
local reply = { 'COUPONS_RELEASED', epoch, seq, left }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'coupons_released', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'coupon', coupon_id, 'count', count, record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', campaign, 'withheld', left)
redis.call('HDEL', campaign, 'reopening')
return remember(record, fingerprint, ttl, reply)
