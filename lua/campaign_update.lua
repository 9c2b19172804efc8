#!lua
-- Moves the window of a coupon campaign: opens it, closes it, or puts off either. Coupons given out stay given out.
--
-- KEYS 1 meta       hash    the partition's books
--      2 outbox     stream
--      3 record     list    the idempotency record
--      4 campaign   hash    total issued withheld opens_at closes_at expires_at ...
--      5 campaigns  zset    coupon id by the end of its window (ms)
-- ARGV 1 '' (a test's clock, ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 coupon id
--      6 first instant of the window (ms) or '' (as it is)  7 first instant after it (ms) or '' (as it is)
--      8 how long ago the latter may be and mean now (ms)
-- Returns {'MOVED', epoch, seq, first instant of the window, first instant after it, coupons issued, coupons kept back}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | CLOSED_BOOKS
--      or UNKNOWN_CAMPAIGN | PAST (it would have closed before now) | NO_WINDOW (it would be empty, or outlast the coupons)
-- Emits campaign_updated
--@include lists
--@include partition
local meta, outbox, record, campaign, campaigns = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, fingerprint, ttl, request_id, coupon_id, opens_at, closes_at, grace =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local c = redis.call('HMGET', campaign, 'opens_at', 'closes_at', 'expires_at', 'issued', 'withheld')
if not c[1] then return { 'UNKNOWN_CAMPAIGN' } end
if opens_at == '' then opens_at = c[1] end
if closes_at == '' then
  closes_at = c[2]
elseif tonumber(closes_at) < tonumber(now) then
  if tonumber(now) - tonumber(closes_at) > grace then return { 'PAST' } end
  closes_at = now
end
if tonumber(opens_at) >= tonumber(closes_at) or tonumber(closes_at) > tonumber(c[3]) then return { 'NO_WINDOW' } end
local reply = { 'MOVED', epoch, seq, opens_at, closes_at, c[4], c[5] or '0' }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'campaign_updated', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'coupon', coupon_id, 'opens_at', opens_at, 'closes_at', closes_at,
  record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', campaign, 'opens_at', opens_at, 'closes_at', closes_at)
redis.call('ZADD', campaigns, closes_at, coupon_id)
return remember(record, fingerprint, ttl, reply)
